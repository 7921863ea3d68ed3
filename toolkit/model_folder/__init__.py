"""Write and read the folder of a trained model, and its model card."""
