"""What entry points share: from method files to policy and cache, from a run to the files beside its video."""
