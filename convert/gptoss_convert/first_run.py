"""A converted model's first run: layer by layer on the CPU, in the memory of one layer, every layer measured.

The parts of the model (embedding, layers, head) are graphs of their own over the weights just written. A fixed prompt
goes through them; each float16 value that could leave its range reports its largest magnitude. A layer that gives
anything but finite numbers, or has no room left, ends the conversion with its name. The last layer's logits at a few
positions are kept: what another device is compared with (``gptoss doctor --check``).

What this does not show is another device's arithmetic: the CPU computes in float32 and rounds afterwards.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_convert import writing
from gptoss_convert.check_prompt import check_positions, check_prompt
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import ConversionError, RangeError
from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.decoder import Composition, embedding_part, head_part, layer_part
from gptoss_convert.schemes import Quantisation
from gptoss_convert.smoke import feed, runtime_errors
from gptoss_convert.targets import Target
from gptoss_convert.weights import Extent
from gptoss_runtime.artifact.manifest import LayerRange, Range
from gptoss_runtime.artifact.reference_logits import ReferenceLogits, TopLogits

_LIMIT = 65504.0  # float16's largest value
_ROOM = 1.0  # binary orders of magnitude that must be left: another prompt may well reach twice as far
_SHORT = 4  # tokens of the prompt that the composition for the device itself is run with, beside the CPU's
_APART = 0.05  # relative difference at which the two compute different things
_FLOAT16 = ir.DataType.FLOAT16


@dataclass(frozen=True)
class FirstRun:
    """What a first run found."""

    range: Range
    reference: ReferenceLogits


@dataclass
class Parts:
    """The parts of a model, each run as a session of its own that is closed again.

    Attributes:
        checkpoint: what the model was made from.
        target: what it is for.
        quantisation: scheme by tensor group.
        folder: where its weights lie.
        extents: where each of them lies.
        memory: bytes that weights in the making may take, where the CPU needs others; ``None``: not said.
    """

    checkpoint: Checkpoint
    target: Target
    quantisation: Quantisation
    folder: Path
    extents: Mapping[str, Extent]
    memory: int | None = None
    maxima: dict[str, float] = field(default_factory=dict)  # of the part that ran last

    def embed(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The stream before the first layer, float32 [1, tokens, hidden]."""
        return self._run("the embedding", self._on_cpu, embedding_part, {"input_ids": np.array([token_ids])})

    def layer(self, hidden: NDArray[np.float32], layer: int, *, as_shipped: bool = False) -> NDArray[np.float32]:
        """The stream after a layer.

        Args:
            hidden: the stream before it, float32 [1, tokens, hidden].
            layer: which.
            as_shipped: by the composition for the device, and not by the one that suits the CPU.
        """
        pieces = self.target.compose if as_shipped else self._on_cpu
        return self._run(
            f"layer {layer}", pieces, lambda g, chosen: layer_part(g, chosen, layer), {"hidden_states": hidden}
        )

    def head(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits, float32 [1, tokens, vocab]."""
        return self._run("the head", self._on_cpu, head_part, {"hidden_states": hidden})

    @property
    def _on_cpu(self) -> Callable[[Quantisation, Any], Composition]:
        return self.target.on_cpu or self.target.compose

    def _run(
        self,
        name: str,
        pieces: Callable[[Quantisation, Any], Composition],
        emit: Callable[[GraphBuilder, Composition], None],
        feeds: Mapping[str, NDArray[Any]],
    ) -> NDArray[np.float32]:
        g = GraphBuilder(self.checkpoint, self.quantisation, self.target.dtype)
        emit(g, pieces(self.quantisation, "all"))
        result = next(name for name in g.output_names if not name.startswith("present."))
        labels = _measure(g)
        with self._weights(g) as (folder, extents):
            session = _session(g, self.target, folder, extents, name)
            tokens = next(iter(feeds.values())).shape[1]
            with runtime_errors(name):
                outputs = session.run([result, *labels], feed(session, tokens, feeds))
            del session
        self.maxima = {}
        for label, value in zip(labels, outputs[1:], strict=True):
            known = label.split("#")[0]
            self.maxima[known] = max(self.maxima.get(known, 0.0), float(value))
        values = np.asarray(outputs[0], np.float32)
        if not np.isfinite(values).all():
            raise RangeError(
                f"{name}: values are not finite: {_largest(self.maxima)}",
                remedy="The checkpoint's activations leave the range of this target's float type; please report this.",
            )
        return values

    @contextmanager
    def _weights(self, g: GraphBuilder) -> Iterator[tuple[Path, Mapping[str, Extent]]]:
        """Where a part's weights lie: those that were written, or, if the CPU cannot read them, others made for it."""
        if self.target.runs_on_cpu:
            yield self.folder, self.extents
            return
        # Beside the conversion, on the disk that has room for it.
        place = self.folder.parent
        with tempfile.TemporaryDirectory(prefix="first-run-", dir=place, ignore_cleanup_errors=True) as scratch:
            settings = writing.Settings(memory=self.memory)
            yield Path(scratch), writing.write(g.recipes, Path(scratch), "part.data", settings).extents


def first_run(parts: Parts, progress: Callable[[int, int], None] | None = None) -> FirstRun:
    """Runs the fixed prompt through a model.

    Args:
        parts: the model's.
        progress: called with (parts done, parts in all).

    Raises:
        RangeError: a layer's values are not finite, or leave no room to float16's limit.
        MemoryLimitTooLow: weights that the CPU needs take more memory than was allowed.
        ConversionError: a part doesn't load or run, or the graph for the device computes something else.
    """
    config, report = parts.checkpoint.config, progress or (lambda done, total: None)
    ids, count = check_prompt(config), config.num_hidden_layers
    hidden = parts.embed(ids)
    embedding, layers, seen = float(np.abs(hidden).max()), list[LayerRange](), set[str]()
    for layer in range(count):
        report(layer, count + 1)
        before, hidden = hidden, parts.layer(hidden, layer)
        layers.append(_range(f"layer {layer}", layer, float(np.abs(hidden).max()), parts))
        if parts.target.on_cpu and parts.target.runs_on_cpu and config.layer_types[layer] not in seen:
            seen.add(config.layer_types[layer])
            _require_same(parts, before[:, :_SHORT], hidden[:, :_SHORT], layer)
    positions = check_positions(len(ids))
    report(count, count + 1)
    logits = parts.head(hidden[:, positions])[0]
    head = _range("the head", count, float(np.abs(hidden).max()), parts)
    report(count + 1, count + 1)
    found = Range(
        dtype="float16" if parts.target.dtype == _FLOAT16 else "float32",
        tokens=len(ids),
        embedding=embedding,
        layers=layers,
        head=head,
    )
    top = [TopLogits.from_logits(position, row) for position, row in zip(positions, logits, strict=True)]
    return FirstRun(found, ReferenceLogits(source="cpu", token_ids=ids, positions=top))


def _range(name: str, layer: int, stream: float, parts: Parts) -> LayerRange:
    """A part's range.

    Raises:
        RangeError: there is no room left.
    """
    if parts.target.dtype != _FLOAT16:
        return LayerRange(layer=layer, stream=stream)
    tightest, largest = max(parts.maxima.items(), key=lambda item: item[1])
    headroom = math.log2(_LIMIT / largest) if largest > 0 else math.inf
    if headroom < _ROOM:
        raise RangeError(
            f"{name}: {tightest} reaches {largest:,.0f}, and float16 ends at {_LIMIT:,.0f}",
            remedy="This target cannot hold the checkpoint's activations; convert for cpu, and please report this.",
        )
    return LayerRange(layer=layer, stream=stream, headroom=round(min(headroom, 99.0), 2), tightest=tightest)


def _require_same(parts: Parts, before: NDArray[np.float32], after: NDArray[np.float32], layer: int) -> None:
    """The graph for the device against the CPU's, on a few tokens."""
    expected, shipped = after - before, parts.layer(before, layer, as_shipped=True) - before
    apart = float(np.linalg.norm(shipped - expected) / max(float(np.linalg.norm(expected)), 1e-30))
    if not apart < _APART:
        raise ConversionError(
            f"layer {layer}: the graph for {parts.target.name} differs by {apart:.1%} from the same layer on the CPU",
            remedy="Please report this; the conversion was not published.",
        )


def _largest(maxima: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:,.4g}" for name, value in maxima.items()) or "nothing was measured"


def _measure(g: GraphBuilder) -> list[str]:
    """Makes the largest magnitude of every watched value an output, 0 of one without elements; their names."""
    labels = []
    for number, (name, value) in enumerate(g.watched):
        flat = g.op("Abs", g.op("Reshape", g.op("Cast", value, to=ir.DataType.FLOAT), g.ints(-1)))
        largest = g.op("ReduceMax", g.op("Concat", flat, g.constant([0.0], np.float32), axis=0), keepdims=0)
        labels.append(f"{name}#{number}")
        g.output(largest, labels[-1], ir.DataType.FLOAT, [])
    return labels


def _session(g: GraphBuilder, target: Target, folder: Path, extents: Mapping[str, Extent], name: str) -> Any:
    """A session that leaves the graph as it is: folding constants would copy weights."""
    import onnxruntime

    model = g.model(opset=target.opset, ir_version=target.ir_version, extents=extents)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    with runtime_errors(name):
        data = ir.to_proto(model).SerializeToString()
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
