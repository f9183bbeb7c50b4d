"""What entry points share: from method files to decider and cache, from a run to the files beside its video."""
