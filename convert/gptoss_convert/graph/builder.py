"""The graph under construction.

Knows how to add nodes, constants and weights to be made, with unique, readable names. Knows nothing about models: the
other modules here decide what to add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.config import GptOssConfig
from gptoss_convert.schemes import Quantisation
from gptoss_convert.weights import Extent, Recipe, RecipeResult, TensorSpec, cast

MICROSOFT = "com.microsoft"
_NUMPY: dict[ir.DataType, Any] = {ir.DataType.FLOAT: np.float32, ir.DataType.FLOAT16: np.float16}


class GraphBuilder:
    """Collects nodes, constants and recipes; :meth:`model` turns them into an ``ir.Model``.

    Attributes:
        checkpoint: the checkpoint from which recipes read.
        config: the checkpoint's dimensions.
        quantisation: scheme by tensor group.
        dtype: float type of matrix products, attention and caches. The residual stream is always float32.
        numpy_dtype: the same for numpy.
        recipes: one for every weight to be made, in file order.
        watched: names and values that could leave the float type's range; see :meth:`watch`.
    """

    def __init__(self, checkpoint: Checkpoint, quantisation: Quantisation, dtype: ir.DataType) -> None:
        self.checkpoint = checkpoint
        self.config: GptOssConfig = checkpoint.config
        self.quantisation = quantisation
        self.dtype = dtype
        self.numpy_dtype = _NUMPY[dtype]
        self.recipes: list[Recipe] = []
        self.watched: list[tuple[str, ir.Value]] = []
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._weights: dict[str, ir.Value] = {}
        self._constants: dict[str, ir.Value] = {}
        self._scope: list[str] = []
        self._names: dict[str, int] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefixes the names of all nodes added inside the block."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """Adds a graph input."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        """Makes a value a graph output and gives it a name."""
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self._outputs.append(value)

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Adds a node with one output and returns that. A ``None`` input is omitted."""
        return self.ops(op_type, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """Adds a node and returns its outputs."""
        base = "/".join([*self._scope, op_type])
        number = self._names[base] = self._names.get(base, -1) + 1
        name = f"{base}_{number}" if number else base
        values = [ir.Value(name=f"{name}.{i}") for i in range(outputs)]
        self._nodes.append(
            ir.Node(domain, op_type, inputs, ir.convenience.convert_attributes(attributes), outputs=values, name=name)
        )
        return values

    def constant(self, array: Any, dtype: type[np.generic] | None = None) -> ir.Value:
        """A small inline constant, the graph's float type by default; equal constants are shared."""
        data = np.asarray(array, dtype or self.numpy_dtype)
        key = f"const_{data.dtype}_{'x'.join(map(str, data.shape))}_{'_'.join(f'{x:g}' for x in data.reshape(-1)[:8])}"
        if data.size > 8:
            raise ValueError("a constant of more than 8 values is a weight")
        if key not in self._constants:
            self._constants[key] = ir.Value(
                name=key, const_value=ir.tensor(data, name=key), type=ir.TensorType(ir.DataType.from_numpy(data.dtype)),
                shape=ir.Shape(data.shape),
            )  # fmt: skip
        return self._constants[key]

    def ints(self, *values: int) -> ir.Value:
        """A 1-D int64 constant, for shapes and axes."""
        return self.constant(values, np.int64)

    def watch(self, name: str, value: ir.Value) -> ir.Value:
        """Marks a value of the graph's float type, to be measured by first_run.py, and returns it."""
        self.watched.append((name, value))
        return value

    def weights(
        self,
        group: str,
        scheme: str,
        outputs: Sequence[TensorSpec],
        make: Callable[[], RecipeResult],
        reads: Sequence[str] = (),
    ) -> Sequence[ir.Value]:
        """Declares weights that one recipe makes later, and returns them as values.

        Args:
            group: tensor group, for the report.
            scheme: how they are stored, for the report.
            outputs: name, type and shape of each weight.
            make: makes their values.
            reads: names of the checkpoint's tensors that ``make`` holds in memory as a whole.
        """
        read = sum(self.checkpoint.tensors[name].nbytes for name in reads)
        self.recipes.append(Recipe(tuple(outputs), make, group, scheme, read))
        values = []
        for output in outputs:
            if output.name in self._weights:
                raise ValueError(f"two weights named {output.name}")
            value = ir.Value(name=output.name, type=ir.TensorType(output.dtype), shape=ir.Shape(output.shape))
            self._weights[output.name] = value
            values.append(value)
        return values

    def find_weight(self, name: str) -> ir.Value | None:
        """The weight of that name, or None if it is not declared yet."""
        return self._weights.get(name)

    def copy_tensor(self, name: str, source: str, *, group: str, dtype: ir.DataType | None = None) -> ir.Value:
        """Declares a weight: the checkpoint's tensor ``source`` in a float type, the graph's by default."""
        return self.stack_tensors(name, [source], group=group, dtype=dtype)

    def stack_tensors(
        self, name: str, sources: Sequence[str], *, group: str, dtype: ir.DataType | None = None
    ) -> ir.Value:
        """Declares a weight: several of the checkpoint's tensors end to end in a float type, the graph's by default."""
        stored, dtype = [self.checkpoint.tensors[source] for source in sources], dtype or self.dtype
        rows = sum(tensor.shape[0] for tensor in stored)
        spec = TensorSpec(name, dtype, (rows, *stored[0].shape[1:]))

        def make() -> RecipeResult:
            return cast(self.checkpoint.concatenate(sources), _NUMPY[dtype])

        return self.weights(group, dtype.name.lower(), [spec], make, sources)[0]

    @property
    def output_names(self) -> list[str]:
        """Names of the graph's outputs so far."""
        return [value.name or "" for value in self._outputs]

    def model(self, *, opset: int, ir_version: int, extents: Mapping[str, Extent]) -> ir.Model:
        """Builds the model; every weight refers to its place in the external data file.

        Args:
            opset: ai.onnx opset; com.microsoft is 1.
            ir_version: ONNX IR version.
            extents: place of each weight, from :func:`gptoss_convert.weights.plan_layout`.
        """
        for name, value in self._weights.items():
            external, offset, length = extents[name]
            assert value.dtype is not None
            assert value.shape is not None
            value.const_value = ir.ExternalTensor(
                external, offset, length, value.dtype, shape=value.shape, name=name, base_dir=Path()
            )
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=[*self._constants.values(), *self._weights.values()],
            opset_imports={"": opset, MICROSOFT: 1},
            name="gpt-oss",
        )
        return ir.Model(graph, ir_version=ir_version, producer_name="gptoss-windows")
