"""The keys of a `defs.yaml`, as types.

A text or number may be a template (`"{{ env.METRICS_AIRFLOW_URL }}"`). Templates are rendered as
text, which is then parsed as the key's type. Unknown keys are errors at every level.
"""

# ruff: noqa: F401 - these are re-exports

from federation_defs.declaration.connection import (
    AuthDeclaration,
    BasicAuthDeclaration,
    ComposerAuthDeclaration,
    HttpDeclaration,
    MwaaAuthDeclaration,
    PasswordAuthDeclaration,
    TlsDeclaration,
    TokenAuthDeclaration,
)
from federation_defs.declaration.dag import (
    UPSTREAM_CONF_KEY,
    DagDeclaration,
    Granularity,
    SuccessDeclaration,
    TriggerDeclaration,
)
from federation_defs.declaration.dependency import (
    DeadlineDeclaration,
    DependencyDeclaration,
    Window,
)
from federation_defs.declaration.fields import suggest
from federation_defs.declaration.instance import (
    InstanceDeclaration,
    ObserveDeclaration,
    SelectDeclaration,
    check_url,
    find_upstream,
    parse_declaration,
)
from federation_defs.declaration.partitions import PartitionsDeclaration
