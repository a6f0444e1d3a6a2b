"""Pretrained models: where weights come from, how they are loaded, adapted, attended over and read out."""
