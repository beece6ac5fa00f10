"""What a calibration walk gathers of each layer's inputs, from as few passes as the axes allow."""
