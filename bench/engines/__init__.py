"""What `bench/training.py` is made of: models, the engines that train them, and what the figures are held against."""
