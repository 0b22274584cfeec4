"""The network in other files: thin, ONNX, layer masks."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    output_files="Files write_all",
    layer_masks="layer_files load_layer",
    onnx_file="export",
    network_forms="Wanted other_forms",
    c_file="c_form describe thin_source",
)
