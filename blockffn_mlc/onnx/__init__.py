"""The model as an ONNX graph: for other runtimes, and as a second opinion on ours."""
