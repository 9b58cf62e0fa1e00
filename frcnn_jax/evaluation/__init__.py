"""What detections are worth and how they look: COCO and VOC metrics, files, pictures.

- `coco.evaluate`, `voc.evaluate`: annotations and detections -> numbers
- `files`: read, write and check COCO annotations and results; `to_results` maps the
  network's `Detections` back to the original image
- `draw`: boxes on pictures, contact sheets

Everything here is NumPy and COCO dicts; each module is imported by its own name.
"""

from frcnn_jax.extras import need

need("train", "cv2", "hotcoco")
