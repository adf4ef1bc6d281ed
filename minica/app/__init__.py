"""From a folder of one's own images to a trained network, its report, predictions on new files and an ONNX file."""
