"""What people bring: model YAMLs and checkpoints of forks, translated or refused by name."""
