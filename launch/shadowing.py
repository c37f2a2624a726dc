"""The check that no other `mlm`, `parallel` or `conf` on the path shadows ours."""

from importlib.util import find_spec

from launch import ROOT

PACKAGES = ("mlm", "parallel", "conf")


def shadowed() -> str | None:
    """One sentence about the first package that is not beside `launch`, or None."""
    for name in PACKAGES:
        spec = find_spec(name)
        places = list(spec.submodule_search_locations or []) if spec else []
        ours = ROOT / name
        if not any(ours.samefile(place) for place in places[:1]):
            found = places[0] if places else (spec.origin if spec else "nowhere")
            return (
                f"the package {name} is found at {found}, not at {ours} where it belongs; take "
                f"that folder's parent out of PYTHONPATH, or rename it"
            )
    return None
