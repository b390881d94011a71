"""How good is a model on a task, and did it get better? Tasks, generation, metrics, statistics, comparison."""
