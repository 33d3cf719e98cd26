"""Augmentation. Where each transform hooks in:

===========================  ==========================================  ======================================
hook (dataset argument)      called with                                 transforms
===========================  ==========================================  ======================================
``voice_transforms``         one voice (T,), before mixing;              ``FormantShift``, ``RandomEqualizer``,
                             only in ``DynamicMixingDataset``            ``RoomImpulseResponse``
``item_transforms``          the whole item (dict), after mixing         ``AddNoise``, ``RandomGain``,
                                                                         ``FrameDrop``, ``FrameShift``,
                                                                         ``StreamDrop``
``instance_transforms``      one value of the item, by its key           yours
``batch_transforms``         one value of the batch, by its key, on      yours (``nn.Module``)
                             the device
===========================  ==========================================  ======================================

They keep the mixture equal to the sum of the sources plus the noise: throat, channel and reverberation come before
mixing, and the voice as they leave it is the target; noise joins the mixture alone; gain scales mixture and sources
alike. All draw from torch's generator, which the datasets seed for every item.
"""

from src.transforms.equalizer import RandomEqualizer
from src.transforms.formant_shift import FormantShift
from src.transforms.gain import RandomGain
from src.transforms.noise import AddNoise
from src.transforms.reverberation import RecordedRooms, RoomImpulseResponse, SimulatedRooms
from src.transforms.visual_drop import FrameDrop, FrameShift, StreamDrop

__all__ = [
    "AddNoise",
    "FormantShift",
    "FrameDrop",
    "FrameShift",
    "RandomEqualizer",
    "RandomGain",
    "RecordedRooms",
    "RoomImpulseResponse",
    "SimulatedRooms",
    "StreamDrop",
]
