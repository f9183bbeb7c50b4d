"""VBench's official evaluator: an environment of its own, processes in it, what they leave."""
