"""torch.hub entries: torch.hub.load('org/mnv3:v0.1.0', 'mobilenetv3_small', pretrained=True, trust_repo=True).

Every model takes `pretrained` (True for the default checkpoint, a tag such as 'ra_in1k', or False), and the arguments
of mnv3.MobileNetV3: num_classes, in_chans, width, drop_rate ... `transforms` gives the preprocessing of a model.
"""

from importlib.util import find_spec as _find_spec

dependencies = ["torch", "torchvision", "timm", "huggingface_hub", "safetensors"]

# torch.hub reports what is missing of these, but reads this file first.
if all(_find_spec(_name) for _name in dependencies):
    from mnv3 import transforms
    from mnv3.timm_models import (
        mnv3_large,
        mnv3_large as mobilenetv3_large,
        mnv3_large_075,
        mnv3_large_075_tf,
        mnv3_large_cifar,
        mnv3_large_minimal,
        mnv3_large_minimal_tf,
        mnv3_large_tf,
        mnv3_small,
        mnv3_small as mobilenetv3_small,
        mnv3_small_050,
        mnv3_small_075,
        mnv3_small_075_tf,
        mnv3_small_cifar,
        mnv3_small_minimal,
        mnv3_small_minimal_tf,
        mnv3_small_tf,
    )
