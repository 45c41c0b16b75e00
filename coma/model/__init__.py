"""The method, in the order in which to read it; docs/method.md explains it in two pages.

../pipeline/views.py  complementary views: which mask units each view sees
layout.py             order of mask units and tokens, in which windows and merges are reshapes
attention.py          DM-MSA: dynamic multi-window self-attention
blocks.py             patch embedding, merging, transformer block, stage
dyvit.py              DyViT, the backbone
dyvit_variants.py     its variants, registered with timm
encoders.py           the interface of a backbone for pre-training, and timm's ViT under it
autoencoder.py        the forward pass and the loss: patches, visible and hidden units, encoder, decoder
decoder.py            cross-attention decoder from visible to hidden patches
coma.py               CoMA: complementary views
mae.py                MAE, for comparison
independent.py        independent random masks, the control for complementarity
build.py              the network of a run from its method's and backbone's names
classifier.py         a backbone with a linear classifier, for fine-tuning
_timm.py              registration of DyViT when timm is imported

Who knows `models_mae.py` of facebookresearch/mae may start with `MaskedAutoencoder.forward` in autoencoder.py.
"""
