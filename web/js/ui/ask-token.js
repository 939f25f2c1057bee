/** Asks for a token when the server wants one, and says whose it is. */

import { access, api } from '../api.js';
import { fill, h, setText } from '../lib/dom.js';
import { button } from './cells.js';

let dialog = null;

/** Asks once. */
export function askToken() {
  if (dialog) return;
  const input = h('input', { type: 'password', id: 'token', autocomplete: 'off', required: true, pattern: ' *[!-~]+ *' });
  const said = h('p.note', { role: 'status' });
  async function submit(event) {
    event.preventDefault();
    access.keep(input.value.trim());
    try {
      await api.token();
      location.reload();
    } catch (problem) {
      access.keep(null);
      setText(said, problem.status === 401 ? 'The server does not know this token.' : problem.message);
      input.select();
    }
  }
  dialog = h('dialog.token', { 'aria-label': 'Token' },
    h('form', { on: { submit } },
      h('p', null, 'This server asks for a token. It is kept until this tab is closed.'),
      h('label', { for: 'token' }, 'The secret of the token'), input, said,
      h('button.button.primary', { type: 'submit' }, 'Use it')));
  dialog.addEventListener('close', () => dialog.showModal());
  document.body.append(dialog);
  dialog.showModal();
}

const whose = access.token === null ? Promise.resolve({}) : api.token().catch(() => ({}));

/** A note that is shown if the token allows reading alone. */
export function readOnlyNote(what) {
  const note = h('p.note', { role: 'note', hidden: true });
  whose.then(({ scope }) => {
    note.hidden = scope !== 'read';
    setText(note, `The token of this tab has the scope read: ${what} needs write.`);
  });
  return note;
}

/** Says whose token the tab has, with a button that forgets it. */
export async function showIdentity(element) {
  const { name, scope } = await whose;
  if (!name) return;
  const forget = () => (access.keep(null), location.reload());
  fill(element, `${name} (${scope}) `, button('Forget the token', forget));
  element.hidden = false;
}
