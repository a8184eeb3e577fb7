"""The cluster's keys as programs have them.

Twin: common/bpf/include/cookie.h:secrets
"""

from typing import Any

from common.cluster.secrets import KEY_LEN, Secrets


def of(secrets: Secrets) -> dict[str, Any]:
    """The fields of `struct secrets`."""
    keys = [key for key in secrets if key]
    return {"keys": (*keys, bytes(KEY_LEN))[:2], "count": len(keys)}
