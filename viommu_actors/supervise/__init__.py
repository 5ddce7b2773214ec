"""The launcher's side: plan and spawn the actors, watch them, order the run, judge what was seen."""
