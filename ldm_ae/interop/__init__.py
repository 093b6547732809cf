"""Models in the file formats of other code: one file per format."""

from ldm_ae.interop.diffusers import export_diffusers
from ldm_ae.interop.ldm import export_ldm, to_ldm_state_dict
from ldm_ae.interop.ldm_import import Imported, import_ldm
from ldm_ae.interop.pipeline import PipelineExport, export_into_pipeline
from ldm_ae.interop.scaling import measure_scaling, settle_scaling
from ldm_ae.models.loading.ldm_keys import from_ldm_state_dict

__all__ = [
    "Imported",
    "PipelineExport",
    "export_diffusers",
    "export_into_pipeline",
    "export_ldm",
    "from_ldm_state_dict",
    "import_ldm",
    "measure_scaling",
    "settle_scaling",
    "to_ldm_state_dict",
]
