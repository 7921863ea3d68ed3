"""Write and read the folder of a trained model, and write its model card."""
