"""Chat templates for composed models: images first, text after, the end-of-sequence token behind every answer."""

from pathlib import Path
from typing import Literal, get_args

from mmalign.errors import UserError

NamedTemplate = Literal["vicuna", "chatml"]

_CONTENT = (
    "{%- macro show(content) -%}{%- if content is string -%}{{- content -}}{%- else -%}{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}{{- 'IMAGE\n' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)
_TEMPLATES: dict[str, str] = {
    "vicuna": _CONTENT + "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{- show(message['content']) + ' ' -}}"
    "{%- elif message['role'] == 'user' -%}{{- 'USER: ' + show(message['content']) + ' ' -}}"
    "{%- else -%}{{- 'ASSISTANT: ' + show(message['content']) + 'EOS' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}",
    "chatml": _CONTENT + "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + show(message['content']) -}}"
    "{{- 'EOS' if message['role'] == 'assistant' else '<|im_end|>' -}}{{- '\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}",
}


def build_chat_template(name_or_file: str, *, image_token: str, eos_token: str) -> str:
    """Return a Jinja chat template: a named one with the model's own tokens filled in, or a file's text as it is.

    Raises:
        ValueError: If it is neither a known name nor a file.
    """
    if name_or_file in _TEMPLATES:
        # Written into the text, not left to template variables, which processors don't all pass.
        return _TEMPLATES[name_or_file].replace("IMAGE", image_token).replace("EOS", eos_token)
    if Path(name_or_file).is_file():
        return Path(name_or_file).read_text(encoding="utf-8")
    raise UserError(f"chat template {name_or_file!r} is neither one of {', '.join(get_args(NamedTemplate))} nor a file")
