"""Configurations of training runs and files of model folders: their fields, rules, readers and writers."""
