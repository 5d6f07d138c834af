"""Commands and programs to copy: text in a box, with a button that a keyboard reaches.

A page puts them into `gr.HTML(..., js_on_load=COPY)`.
"""

from __future__ import annotations

from collections.abc import Iterable

from app.html import escape

# A page that is not served from this machine has no clipboard of its own: there the text is selected and copied.
COPY = """
element.addEventListener('click', async (event) => {
  const button = event.target.closest('button.copy');
  if (!button) return;
  const code = button.parentElement.querySelector('code');
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    getSelection().selectAllChildren(code);
    document.execCommand('copy');
  }
  button.textContent = 'Copied';
  setTimeout(() => { button.textContent = 'Copy'; }, 1500);
});
"""


def snippets(titled: Iterable[tuple[str, str]]) -> str:
    """(what it does, the text) of each."""
    return "".join(
        f'<figure class="snippet"><figcaption>{escape(title)}</figcaption><pre tabindex="0"><code>{escape(text)}</code>'
        f'</pre><button type="button" class="copy" aria-label="Copy: {escape(title)}">Copy</button></figure>'
        for title, text in titled
    )
