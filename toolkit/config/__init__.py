"""What a training and a model folder can be told: fields, rules on them, YAML and JSON files."""
