"""What a run tries: options, the jobs made of them, budgets, the schedule, estimates of the time that is left."""
