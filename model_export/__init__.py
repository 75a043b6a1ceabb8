"""From a BERT in PyTorch to the model folder that the worker serves."""
