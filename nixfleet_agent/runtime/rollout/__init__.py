"""Who decides: the reducer, its view of all rollouts, and what it takes in and gives out."""
