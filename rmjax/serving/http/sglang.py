"""SGLang's endpoints of reward models, whose rewards are called embeddings."""

import uuid

from msgspec import UNSET

from rmjax.serving.errors import RequestError
from rmjax.serving.http import schemas
from rmjax.serving.http.fields import texts_or_tokens
from rmjax.serving.protocol import Call
from rmjax.serving.services.reward import RewardService


async def encode(
    model: RewardService, body: schemas.SglangBody, call: Call
) -> schemas.Embedding | list[schemas.Embedding]:
    """Scores texts or tokens, as SGLang's `/encode` and `/classify`: rewards, in a list if the field is one of several.

    A text starts with the BOS token if the tokenizer adds one.
    """
    given = [(name, value) for name in ("text", "input_ids") if (value := getattr(body, name)) is not UNSET]
    if len(given) != 1:
        found = "both" if given else "neither"
        raise RequestError(f"the body has {found} of the fields 'text' and 'input_ids'; expected one")
    for name in ("image_data", "audio_data"):
        if getattr(body, name):
            raise RequestError(f"{name!r} of the body is given; the model reads text alone")
    ((field, values),) = given
    source, conversations = texts_or_tokens(model, field, values)
    conversations = [model.reader.with_bos(text) if isinstance(text, str) else text for text in conversations]
    scored = await model.score(conversations, source, call)
    single = isinstance(values, str) or all(isinstance(token, int) for token in values)
    if isinstance(body.rid, list) and len(body.rid) != len(conversations):
        raise RequestError(f"'rid' of the body has {len(body.rid)} names; expected {len(conversations)}, one per text")
    embeddings = []
    for i, (row, length, cut) in enumerate(zip(scored.rewards.tolist(), scored.lengths, scored.exceeded, strict=True)):
        name = body.rid[i] if isinstance(body.rid, list) else body.rid if single and body.rid else uuid.uuid4().hex
        information = {"id": name, "prompt_tokens": length} | ({"truncated": True} if cut else {})
        embeddings.append(schemas.Embedding(row, information))
    return embeddings[0] if single else embeddings
