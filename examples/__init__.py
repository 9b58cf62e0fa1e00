"""Small whole programs to copy from; run them as `python -m examples.NAME`.

| example | shows |
| --- | --- |
| `rpn_plain_jax`, `rpn_nnx`, `rpn_equinox` | targets and losses under another framework, or none |
| `retinanet` | a one-stage detector made of the anchors, matching, losses and NMS |
| `giou_loss` | a box loss of your own |
| `my_backbone` | a backbone of your own in one file |
| `my_dataset` | a data format of your own in one file |
| `finetune_coco` | from a trained checkpoint to your own COCO folder and classes |
| `shapes.ipynb` | train, look at what it finds, in a notebook |
"""  # noqa: E501
