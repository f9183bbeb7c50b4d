"""ComfyUI's own page, without its server: does it open the example, and send what the other example says?

The page is the package comfyui-frontend-package in a headless Chromium; its requests are answered here, those about
nodes by what the runtime says of ours, and those about SaveVideo, PreviewImage and PreviewAny by stand-ins.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import comfyui_frontend_package
from playwright.sync_api import Page, Route, sync_playwright

# Nobody is asked there: every request is answered below.
ADDRESS = "http://localhost"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
STATIC = Path(comfyui_frontend_package.__file__).parent / "static"
READY = "!!(window.app && app.graph && window.LiteGraph?.registered_node_types['FlowCacheMakeVideo'])"
SENT = "async () => JSON.parse(JSON.stringify((await app.graphToPrompt()).output))"
SECONDS = 120


def node_info(node: Any) -> dict[str, Any]:
    """What ComfyUI's server says of a node, a class."""
    return asdict(node.GET_SCHEMA().get_v1_info(node)) | {"python_module": "custom_nodes.flowcache-nodes"}


def stand_in(name: str, fields: Mapping[str, Any], outputs: tuple[str, ...] = ()) -> dict[str, Any]:
    """The same of one of ComfyUI's own nodes."""
    said = {"name": name, "display_name": name, "description": "", "python_module": "nodes", "category": "stand-ins"}
    lists = {"output": outputs, "output_name": outputs, "output_is_list": [False] * len(outputs)}
    order = {"input_order": {"required": list(fields)}}
    return {**said, **lists, **order, "input": {"required": fields}, "output_node": True}


def stand_ins() -> list[dict[str, Any]]:
    auto = ["COMBO", {"options": ["auto"], "default": "auto"}]
    saved = {"video": ["VIDEO", {}], "filename_prefix": ["STRING", {"default": "video"}], "format": auto, "codec": auto}
    return [
        stand_in("SaveVideo", saved),
        stand_in("PreviewImage", {"images": ["IMAGE", {}]}),
        stand_in("PreviewAny", {"source": ["*", {}]}, ("STRING",)),
    ]


def sent_by_page(nodes: list[Any], workflow: dict[str, Any], picture: Path) -> tuple[dict[str, Any], list[str]]:
    """What the page would send of a ``workflow`` that it has opened, and its errors; ``picture``: where it is drawn."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    info = {one["name"]: one for one in [*map(node_info, nodes), *stand_ins()]}
    errors: list[str] = []
    with sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1400, "height": 800})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.route("**/*", lambda route: answer(route, info))
        page.route_web_socket("**/ws*", lambda socket: None)
        page.goto(f"{ADDRESS}/", timeout=SECONDS * 1000)
        page.wait_for_function(READY, timeout=SECONDS * 1000)
        found = opened(page, workflow)
        page.screenshot(path=picture)
        chromium.close()
    return found, errors


def opened(page: Page, workflow: dict[str, Any]) -> dict[str, Any]:
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    page.wait_for_timeout(2000)  # it draws, and lays out its text fields
    page.evaluate("() => { app.canvas.ds.offset = [80, 20]; app.canvas.setDirty(true, true); }")
    page.wait_for_timeout(1000)
    return page.evaluate(SENT)


def answer(route: Route, info: dict[str, Any]) -> None:
    """A file of the page, or what its server would say where nothing was ever set or made."""
    url = urlsplit(route.request.url)
    if f"{url.scheme}://{url.netloc}" != ADDRESS:
        route.abort()
        return
    said = {
        "object_info": info,
        "settings": {"Comfy.TutorialCompleted": True},
        "users": {"storage": "server", "migrated": True},
        "system_stats": {"system": {"comfyui_version": "stand-in", "argv": []}, "devices": []},
        "queue": {"queue_running": [], "queue_pending": []},
        "prompt": {"exec_info": {"queue_remaining": 0}},
        "history": {},
        "features": {},
        "i18n": {},
        "workflow_templates": {},
    }
    name = url.path.removeprefix("/api/")
    file = STATIC / (url.path.lstrip("/") or "index.html")
    if name != url.path:
        route.fulfill(json=said.get(name, []))
    elif file.is_file():
        route.fulfill(path=file)
    else:
        route.fulfill(status=404)
