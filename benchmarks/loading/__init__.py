"""How many training images a second one core prepares: our fast and reference path, and mmsegmentation's pipeline."""
