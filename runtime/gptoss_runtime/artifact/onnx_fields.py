"""The messages of onnx.proto (IR version 11): by field number, the field's name and how onnx_file.py reads it.

"text" is a string to read, "Entry" a key-value pair, the name of a message that message, and "" a field to skip:
numbers, bytes of values, and types and devices, which contain no tensors, graphs or operators.
"""

from __future__ import annotations

FIELDS: dict[str, dict[int, tuple[str, str]]] = {
    "Model": {
        **{1: ("ir_version", ""), 2: ("producer_name", ""), 3: ("producer_version", ""), 4: ("domain", "")},
        **{5: ("model_version", ""), 6: ("doc_string", ""), 7: ("graph", "Graph"), 8: ("opset_import", "Opset")},
        **{14: ("metadata_props", "Entry"), 20: ("training_info", "Training"), 25: ("functions", "Function")},
        26: ("configuration", ""),
    },
    "Opset": {1: ("domain", "text"), 2: ("version", "")},
    "Function": {
        **{1: ("name", ""), 4: ("input", ""), 5: ("output", ""), 6: ("attribute", ""), 7: ("node", "Node")},
        **{8: ("doc_string", ""), 9: ("opset_import", "Opset"), 10: ("domain", "text")},
        **{11: ("attribute_proto", "Attribute"), 12: ("value_info", "ValueInfo"), 13: ("overload", "")},
        14: ("metadata_props", "Entry"),
    },
    "Graph": {
        **{1: ("node", "Node"), 2: ("name", ""), 5: ("initializer", "Tensor"), 10: ("doc_string", "")},
        **{11: ("input", "ValueInfo"), 12: ("output", "ValueInfo"), 13: ("value_info", "ValueInfo")},
        **{14: ("quantization_annotation", "Annotation"), 15: ("sparse_initializer", "SparseTensor")},
        16: ("metadata_props", "Entry"),
    },
    "Node": {
        **{1: ("input", ""), 2: ("output", ""), 3: ("name", ""), 4: ("op_type", "text"), 5: ("attribute", "Attribute")},
        **{6: ("doc_string", ""), 7: ("domain", "text"), 8: ("overload", ""), 9: ("metadata_props", "Entry")},
        10: ("device_configurations", ""),
    },
    "Attribute": {
        **{1: ("name", ""), 2: ("f", ""), 3: ("i", ""), 4: ("s", ""), 5: ("t", "Tensor"), 6: ("g", "Graph")},
        **{7: ("floats", ""), 8: ("ints", ""), 9: ("strings", ""), 10: ("tensors", "Tensor"), 11: ("graphs", "Graph")},
        **{13: ("doc_string", ""), 14: ("tp", ""), 15: ("type_protos", ""), 20: ("type", "")},
        **{21: ("ref_attr_name", ""), 22: ("sparse_tensor", "SparseTensor"), 23: ("sparse_tensors", "SparseTensor")},
    },
    "SparseTensor": {1: ("values", "Tensor"), 2: ("indices", "Tensor"), 3: ("dims", "")},
    "Tensor": {
        **{1: ("dims", ""), 2: ("data_type", ""), 3: ("segment", ""), 4: ("float_data", ""), 5: ("int32_data", "")},
        **{
            6: ("string_data", ""),
            7: ("int64_data", ""),
            8: ("name", ""),
            9: ("raw_data", ""),
            10: ("double_data", ""),
        },
        **{11: ("uint64_data", ""), 12: ("doc_string", ""), 13: ("external_data", "Entry"), 14: ("data_location", "")},
        16: ("metadata_props", "Entry"),
    },
    "ValueInfo": {1: ("name", ""), 2: ("type", ""), 3: ("doc_string", ""), 4: ("metadata_props", "Entry")},
    "Annotation": {1: ("tensor_name", ""), 2: ("quant_parameter_tensor_names", "Entry")},
}
REPEATED: dict[str, frozenset[str]] = {
    "Model": frozenset({"opset_import", "metadata_props", "training_info", "functions", "configuration"}),
    "Opset": frozenset(),
    "Function": frozenset(
        {"input", "output", "attribute", "node", "opset_import", "attribute_proto", "value_info", "metadata_props"}
    ),
    "Graph": frozenset(
        {
            *("node", "initializer", "input", "output", "value_info", "quantization_annotation", "sparse_initializer"),
            "metadata_props",
        }
    ),
    "Node": frozenset({"input", "output", "attribute", "metadata_props", "device_configurations"}),
    "Attribute": frozenset({"floats", "ints", "strings", "tensors", "graphs", "type_protos", "sparse_tensors"}),
    "SparseTensor": frozenset({"dims"}),
    "Tensor": frozenset(
        {
            *("dims", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data"),
            *("external_data", "metadata_props"),
        }
    ),
    "ValueInfo": frozenset({"metadata_props"}),
    "Annotation": frozenset({"quant_parameter_tensor_names"}),
}
