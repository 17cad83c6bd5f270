"""Networks, training, prediction, metrics and calibration."""
