"""Sentencepiece's message for a model. Its module is generated and has no types."""

from typing import Any

from sentencepiece import sentencepiece_model_pb2

ModelProto: Any = vars(sentencepiece_model_pb2)["ModelProto"]
