"""From files on disk to uint8 clips: lists, decoding, frame sampling, crops and Grain batches; no jax."""
