"""Dense prediction: detectors and segmentation networks on pre-trained backbones, ready to be adapted."""
