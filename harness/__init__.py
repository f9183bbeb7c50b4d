"""What entry points share: from method files to decider, advancer and cache, from a run to the files beside its video."""
