"""Request and response bodies of the HTTP endpoints, described by /openapi.json.

Unknown fields of a request are ignored: clients of the original servers send more. A field that may be null has the
default None; one that may be absent but not null has the default UNSET.
"""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from rmjax.serving.protocol import DATATYPES, PARAMETERS

_KINDS = {bool: "boolean", int: "integer"}
_PARAMETERS = {name: {"type": _KINDS[kind], "description": text} for name, (kind, text) in PARAMETERS.items()}
_MESSAGE = {"type": "object", "properties": {"role": {"type": "string"}, "content": {"type": "string"}}}


def _doc(description: str, **schema: Any) -> Meta:
    return Meta(description=description, extra_json_schema=schema or None)


Ignored = Annotated[Any, _doc("Ignored.")]
ModelName = Annotated[str | None, _doc("Name or path of a model; default: the server's first.")]
Messages = Annotated[list[dict[str, Any]], _doc("Chat messages, instead of a text.", items=_MESSAGE)] | UnsetType
Tools = Annotated[list[dict[str, Any]] | None, _doc("Tools that the chat template renders with the messages.")]
Truncated = Annotated[bool, _doc("True if the text was too long and was cut, else absent.")] | UnsetType
Elements = Annotated[list[Any], _doc("Elements in row-major order, flat or nested.")] | UnsetType
Shape = Annotated[list[int], _doc("Size of each axis.")]
Datatype = Annotated[str, _doc("Datatype of the elements.", enum=list(DATATYPES))]
TokenLimit = Annotated[int, Meta(ge=-1, description="Cut a text to its last tokens, so many; -1: to the maximum.")]


class Error(Struct):
    error: Annotated[str, _doc("Names the field, the value found and the value expected.")]


class InputTensor(Struct):
    name: str
    shape: Shape
    datatype: Datatype
    data: Elements = UNSET
    parameters: Annotated[dict[str, Any] | None, _doc("`binary_data_size`: bytes that follow the JSON.")] = None


class OutputParameters(Struct, forbid_unknown_fields=True):
    binary_data: Annotated[bool | None, _doc("Return the elements as bytes that follow the JSON.")] = None
    classification: Annotated[Any, _doc("Only 0.")] = 0


class RequestedOutput(Struct):
    name: str
    parameters: OutputParameters | None = None


class InferBody(Struct):
    """A request of the Open Inference Protocol v2."""

    inputs: list[InputTensor]
    outputs: Annotated[list[RequestedOutput] | None, _doc("Default: all outputs.")] = None
    parameters: Annotated[dict[str, Any] | None, _doc("Options of the request.", properties=_PARAMETERS)] = None
    id: Annotated[str | None, _doc("Returned with the response.")] = None


class OutputTensor(Struct):
    name: str
    datatype: Datatype
    shape: Shape
    data: Elements = UNSET
    parameters: Annotated[dict[str, int], _doc("`binary_data_size`: bytes that follow the JSON.")] | UnsetType = UNSET


class InferResponse(Struct):
    """A response of the Open Inference Protocol v2."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | UnsetType = UNSET
    parameters: (
        Annotated[dict[str, str], _doc("`left_out`: what the chat template left out of messages, if anything.")]
        | UnsetType
    ) = UNSET


class IndexBody(Struct):
    ready: Annotated[bool | None, _doc("List only models that are ready; default: false.")] = None


class LoadBody(Struct):
    parameters: Annotated[Any, _doc("Empty: models are loaded from the path given to the server.")] = None


class ModelEntry(Struct):
    id: Annotated[str, _doc("Name of the model.")]
    object: str
    created: Annotated[int, _doc("Unix time at which the server started, in seconds.")]
    owned_by: str
    root: str
    max_model_len: Annotated[int | None, _doc("The model's maximum, in tokens.")]


class ModelList(Struct):
    object: str
    data: list[ModelEntry]


class GetRewardBody(Struct):
    """A request of OpenRLHF's remote reward model."""

    query: Annotated[list[str], Meta(min_length=1, description="Texts, each a prompt with its response.")]
    prompts: Ignored = None
    labels: Ignored = None


class GetRewardResponse(Struct):
    rewards: list[float]
    scores: Annotated[list[float], _doc("The same as `rewards`.")]
    extra_logs: Annotated[dict[str, list[float]], _doc("`truncated`: 1 for texts that were cut, if there are any.")]


class ScoreBody(Struct):
    """A request of slime's remote reward model."""

    prompt: Annotated[str | list[dict[str, Any]], _doc("A text or chat messages.")]
    response: str
    label: Ignored = None


class PredictBody(Struct):
    """A request of Text Embeddings Inference."""

    inputs: Annotated[
        str | list[str | list[str]], _doc("A text, a pair [prompt, response], or a list of [text] or pairs.")
    ]
    raw_scores: Annotated[bool | None, _doc("Return rewards, not probabilities; default: false.")] = None
    truncate: Annotated[bool | None, _doc("Cut texts that are too long; default: false.")] = None
    truncation_direction: Annotated[str | None, _doc("`right` (default) or `left`, the end to cut.")] = None


class Prediction(Struct):
    score: float
    label: Annotated[str, _doc("Name of the attribute.")]
    truncated: Truncated = UNSET


class VllmBody(Struct):
    """A request of vLLM's /classify and /pooling, and of SGLang's /v1/embeddings."""

    model: ModelName = None
    input: Annotated[str | list[str | int | list[int]] | UnsetType, _doc("A text, tokens, or a list of either.")] = (
        UNSET
    )
    messages: Messages = UNSET
    tools: Tools = None
    use_activation: Annotated[bool | None, _doc("Return probabilities; default: true for /classify only.")] = None
    activation: Annotated[bool | None, _doc("Former name of `use_activation`, takes precedence.")] = None
    add_special_tokens: Annotated[bool | None, _doc("Start texts with the BOS token; default: true.")] = None
    truncate_prompt_tokens: TokenLimit | None = None
    encoding_format: Annotated[str | None, _doc("Only `float`, the default.")] = None


class SglangBody(Struct):
    """A request of SGLang's /encode, which /classify takes too."""

    model: ModelName = None
    text: Annotated[str | list[str] | UnsetType, _doc("A text, or a list of texts.")] = UNSET
    input_ids: Annotated[list[int | list[int]] | UnsetType, _doc("Tokens, or a list of such lists.")] = UNSET
    rid: Annotated[Any, _doc("Name of the request, or a list with one of each text; returned in `meta_info`.")] = None
    image_data: Annotated[Any, _doc("Only null: the models read text.")] = None
    audio_data: Annotated[Any, _doc("Only null: the models read text.")] = None


class Embedding(Struct):
    embedding: Annotated[list[float], _doc("One reward per attribute.")]
    meta_info: Annotated[dict[str, Any], _doc("`id`, `prompt_tokens`, and `truncated` if the text was cut.")]


class TextPair(Struct):
    text: Annotated[str, _doc("A whole text; with `text_pair` the prompt.")]
    text_pair: Annotated[str | None, _doc("The response.")] = None


class PipelineParameters(Struct):
    function_to_apply: Annotated[
        str | None, _doc("`none` (rewards), `sigmoid` or `softmax`; default: sigmoid for one attribute, else softmax.")
    ] = None
    top_k: Annotated[Annotated[int, Meta(ge=1)] | None, _doc("Number of attributes returned; default: all.")] = None
    truncation: Annotated[bool | None, _doc("Cut texts that are too long; default: false.")] = None


class PipelineBody(Struct):
    """A request of Hugging Face's text-classification endpoints (`InferenceClient.text_classification`)."""

    inputs: Annotated[
        str | TextPair | list[str | TextPair], _doc("A text, a pair {text, text_pair}, or a list of either.")
    ]
    parameters: PipelineParameters | None = None


class ScoreEvaluationBody(Struct):
    """A request of LLaMA-Factory's reward server, whose clients name the model `model` whatever it is."""

    messages: Annotated[list[str], Meta(min_length=1, description="Whole texts, tokenized as they are.")]
    max_length: Annotated[
        Annotated[int, Meta(ge=1)] | None, _doc("Cut texts to their first tokens, so many; default: refuse long ones.")
    ] = None


class ScoreEvaluationResponse(Struct):
    id: str
    object: str
    model: str
    scores: list[float]


class VllmItem(Struct):
    index: int
    object: Annotated[str, _doc("`pooling` or `embedding`; absent in /classify.")] | UnsetType = UNSET
    label: Annotated[str, _doc("/classify: the attribute with the largest value.")] | UnsetType = UNSET
    num_classes: Annotated[int, _doc("/classify: number of attributes.")] | UnsetType = UNSET
    probs: Annotated[list[float], _doc("/classify: one value per attribute.")] | UnsetType = UNSET
    data: Annotated[list[float], _doc("/pooling: one value per attribute.")] | UnsetType = UNSET
    embedding: Annotated[list[float], _doc("/v1/embeddings: one value per attribute.")] | UnsetType = UNSET
    truncated: Truncated = UNSET


class VllmResponse(Struct):
    id: str
    object: str
    created: Annotated[int, _doc("Unix time, in seconds.")]
    model: str
    data: Annotated[list[VllmItem], _doc("One item per text.")]
    usage: Annotated[dict[str, int], _doc("Numbers of tokens.")]
    left_out: Annotated[str, _doc("What the chat template left out of the messages, if anything.")] | UnsetType = UNSET


class TokenizeBody(Struct):
    """A request of vLLM's /tokenize."""

    model: ModelName = None
    prompt: str | UnsetType = UNSET
    messages: Messages = UNSET
    tools: Tools = None
    return_token_strs: Annotated[bool | None, _doc("Return the text of each token; default: false.")] = None


class TokenizeResponse(Struct):
    count: int
    max_model_len: Annotated[int, _doc("The model's maximum, in tokens.")]
    tokens: list[int]
    token_strs: list[str] | None
    truncated: Truncated = UNSET
