"""Trains a lip encoder to tell which voice a mouth belongs to, and at which offset.

    python -m pipeline.synchrony root=DIR                        # train on DIR/mouths and DIR/audio/train
    python -m pipeline.synchrony.measure --root DIR --part test --run saved/lip_encoder
    python -m pipeline.synchrony.mean --run saved/lip_encoder --other weights --out OUT  # of weights with init_from

No word is labelled: mouths and voices that belong together teach it. Lips of an utterance must agree with its own
voice better than with the voices of others, of the same speaker, and of the same clip at another offset. No stretch of
a clip that is trained on goes over a cut.

Reference: Chung and Zisserman, "Out of time: automated lip sync in the wild", 2016; contrastive form as in van den Oord
et al., "Representation learning with contrastive predictive coding", 2018, eq. 4.
"""
