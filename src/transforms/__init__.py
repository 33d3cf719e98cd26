"""Augmentation. Where each transform hooks in:

===========================  ==========================================  ======================================
hook (dataset argument)      called with                                 transforms
===========================  ==========================================  ======================================
``voice_transforms``         one voice (T,), before mixing;              ``RoomImpulseResponse``
                             only in ``DynamicMixingDataset``
``item_transforms``          the whole item (dict), after mixing         ``AddNoise``, ``RandomGain``,
                                                                         ``FrameDrop``, ``FrameShift``,
                                                                         ``StreamDrop``
``instance_transforms``      one value of the item, by its key           yours
``batch_transforms``         one value of the batch, by its key, on      yours (``nn.Module``)
                             the device
===========================  ==========================================  ======================================

They keep the mixture equal to the sum of the sources plus the noise: reverberation comes before mixing, and the
reverberant voice is the target; noise joins the mixture alone; gain scales mixture and sources alike. All draw from
torch's generator, which the datasets seed for every item.
"""

from src.transforms.gain import RandomGain
from src.transforms.noise import AddNoise
from src.transforms.reverberation import RecordedRooms, RoomImpulseResponse, SimulatedRooms
from src.transforms.visual_drop import FrameDrop, FrameShift, StreamDrop

__all__ = [
    "AddNoise",
    "FrameDrop",
    "FrameShift",
    "RandomGain",
    "RecordedRooms",
    "RoomImpulseResponse",
    "SimulatedRooms",
    "StreamDrop",
]
