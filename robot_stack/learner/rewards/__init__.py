"""Where rewards come from: models that say of recorded steps whether the task was done, and how a learner uses them."""
