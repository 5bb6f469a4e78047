"""A converted model's first run: layer by layer on the CPU, in the memory of one layer, with every layer measured.

The parts of the model (embedding, layers, head) are separate graphs over the weights just written. A fixed prompt runs
through them, and each float16 value that could leave its range reports its largest magnitude. A layer whose values are
not finite, or come too close to float16's limit, fails the conversion with the layer's name. The logits at a few
positions are stored as reference logits, to compare other devices with (``gptoss doctor --check``).

The first run does not test another device's arithmetic: the CPU computes in float32 and rounds afterwards.
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
_MIN_HEADROOM = 1.0  # binary orders of magnitude below the limit: another prompt may give twice as large values
_SHORT = 4  # tokens of the prompt on which the device's composition is compared with the CPU's
_LARGEST_DIFFERENCE = 0.05  # relative difference of the two from which on they count as different computations
_FLOAT16 = ir.DataType.FLOAT16


@dataclass(frozen=True)
class FirstRun:
    """Results of a first run: the range of the values, and reference logits."""

    range: Range
    reference: ReferenceLogits


@dataclass
class Parts:
    """The parts of a model. Each is run in a session of its own, which is closed again.

    Attributes:
        checkpoint: the checkpoint the model was made from.
        target: the target it was converted for.
        quantisation: scheme by tensor group.
        folder: folder of its weights.
        extents: place of each weight.
        memory: most bytes to take while weights are made for the CPU, where it needs others; ``None``: no limit given.
        maxima: largest magnitude of each watched value of the part that ran last.
    """

    checkpoint: Checkpoint
    target: Target
    quantisation: Quantisation
    folder: Path
    extents: Mapping[str, Extent]
    memory: int | None = None
    maxima: dict[str, float] = field(default_factory=dict)

    def embed(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Runs the embedding; gives the stream before the first layer, float32 [1, tokens, hidden]."""
        return self._run("the embedding", self._on_cpu, embedding_part, {"input_ids": np.array([token_ids])})

    def layer(self, hidden: NDArray[np.float32], layer: int, *, as_shipped: bool = False) -> NDArray[np.float32]:
        """Runs a layer; gives the stream after it, float32 [1, tokens, hidden].

        Args:
            hidden: the stream before it, float32 [1, tokens, hidden].
            layer: the layer's number.
            as_shipped: use the device's composition instead of the CPU's.
        """
        pieces = self.target.compose if as_shipped else self._on_cpu
        return self._run(
            f"layer {layer}", pieces, lambda g, chosen: layer_part(g, chosen, layer), {"hidden_states": hidden}
        )

    def head(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Runs the last norm and the head; gives logits, float32 [1, tokens, vocab]."""
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
                f"{name}: values are not finite: {_describe_maxima(self.maxima)}",
                remedy="The checkpoint's activations exceed this target's float type; please report this.",
            )
        return values

    @contextmanager
    def _weights(self, g: GraphBuilder) -> Iterator[tuple[Path, Mapping[str, Extent]]]:
        """Folder and extents of a part's weights: those that were written, or temporary ones that the CPU can read."""
        if self.target.runs_on_cpu:
            yield self.folder, self.extents
            return
        # Beside the conversion, on the same disk, which has room.
        with tempfile.TemporaryDirectory(
            prefix="first-run-", dir=self.folder.parent, ignore_cleanup_errors=True
        ) as scratch:
            options = writing.WriteOptions(memory=self.memory)
            yield Path(scratch), writing.write(g.recipes, Path(scratch), "part.data", options).extents


def first_run(parts: Parts, progress: Callable[[int, int], None] | None = None) -> FirstRun:
    """Runs the fixed prompt through a model.

    Args:
        parts: the parts of the model.
        progress: called with (parts done, parts in all).

    Raises:
        RangeError: a layer's values are not finite, or too close to float16's limit.
        MemoryLimitTooLow: weights that the CPU needs take more memory than was allowed.
        ConversionError: a part doesn't load or run, or the device's graph computes something else.
    """
    config, report = parts.checkpoint.config, progress or (lambda done, total: None)
    ids, count = check_prompt(config), config.num_hidden_layers
    hidden = parts.embed(ids)
    embedding, layers, seen = float(np.abs(hidden).max()), list[LayerRange](), set[str]()
    for layer in range(count):
        report(layer, count + 1)
        before, hidden = hidden, parts.layer(hidden, layer)
        layers.append(_layer_range(f"layer {layer}", layer, float(np.abs(hidden).max()), parts))
        if parts.target.on_cpu and parts.target.runs_on_cpu and config.layer_types[layer] not in seen:
            seen.add(config.layer_types[layer])
            _require_same(parts, before[:, :_SHORT], hidden[:, :_SHORT], layer)
    positions = check_positions(len(ids))
    report(count, count + 1)
    logits = parts.head(hidden[:, positions])[0]
    head = _layer_range("the head", count, float(np.abs(hidden).max()), parts)
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


def _layer_range(name: str, layer: int, stream: float, parts: Parts) -> LayerRange:
    """The range of a part's values.

    Raises:
        RangeError: they are too close to float16's limit.
    """
    if parts.target.dtype != _FLOAT16:
        return LayerRange(layer=layer, stream=stream)
    tightest, largest = max(parts.maxima.items(), key=lambda item: item[1])
    headroom = math.log2(_LIMIT / largest) if largest > 0 else math.inf
    if headroom < _MIN_HEADROOM:
        raise RangeError(
            f"{name}: {tightest} reaches {largest:,.0f}, and float16 ends at {_LIMIT:,.0f}",
            remedy="This target cannot hold the checkpoint's activations; convert for cpu, and please report this.",
        )
    return LayerRange(layer=layer, stream=stream, headroom=round(min(headroom, 99.0), 2), tightest=tightest)


def _require_same(parts: Parts, before: NDArray[np.float32], after: NDArray[np.float32], layer: int) -> None:
    """Compares the device's graph of a layer with the CPU's on a few tokens.

    Raises:
        ConversionError: they compute different things.
    """
    expected, shipped = after - before, parts.layer(before, layer, as_shipped=True) - before
    difference = float(np.linalg.norm(shipped - expected) / max(float(np.linalg.norm(expected)), 1e-30))
    if not difference < _LARGEST_DIFFERENCE:
        raise ConversionError(
            f"layer {layer}: the graph for {parts.target.name} differs by {difference:.1%} from the CPU's",
            remedy="Please report this; the conversion was not published.",
        )


def _describe_maxima(maxima: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:,.4g}" for name, value in maxima.items()) or "nothing was measured"


def _measure(g: GraphBuilder) -> list[str]:
    """Adds an output for the largest magnitude of every watched value, 0 for an empty one; returns their names."""
    labels = []
    for number, (name, value) in enumerate(g.watched):
        flat = g.op("Abs", g.op("Reshape", g.op("Cast", value, to=ir.DataType.FLOAT), g.ints(-1)))
        largest = g.op("ReduceMax", g.op("Concat", flat, g.constant([0.0], np.float32), axis=0), keepdims=0)
        labels.append(f"{name}#{number}")
        g.output(largest, labels[-1], ir.DataType.FLOAT, [])
    return labels


def _session(g: GraphBuilder, target: Target, folder: Path, extents: Mapping[str, Extent], name: str) -> Any:
    """A session without graph optimisations: constant folding would copy weights."""
    import onnxruntime

    model = g.model(opset=target.opset, ir_version=target.ir_version, extents=extents)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    with runtime_errors(name):
        data = ir.to_proto(model).SerializeToString()
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
