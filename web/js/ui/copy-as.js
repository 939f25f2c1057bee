/** "Copy as": the question of a view as a command for another program, and the link that reopens the view. */

import { h, fill, icon, ICONS, setText } from '../lib/dom.js';
import { announce } from './announce.js';

const FORMS = ['curl', 'Python', 'grpcurl', 'tally', 'Link'];
let lastForm = 'curl';

export const server = () => ({ origin: location.origin, host: location.hostname });

/**
 * A button that opens the commands.
 * @param {() => Record<string, string|{none: string}>} commands asked for when it is opened
 */
export function copyAs(commands) {
  const panel = h('div.copy-panel', { hidden: true, role: 'group', 'aria-label': 'Copy as' });
  const button = h('button.button', { type: 'button', 'aria-expanded': 'false', on: { click: () => toggle() } }, icon(ICONS.copy), 'Copy as');
  const box = h('div.copy-as', { on: { keydown: (event) => event.key === 'Escape' && !panel.hidden && (close(), event.stopPropagation()) } }, button, panel);

  function toggle() {
    if (panel.hidden) open();
    else close();
  }

  function open() {
    fill(panel, content(commands()));
    panel.hidden = false;
    button.setAttribute('aria-expanded', 'true');
    document.addEventListener('pointerdown', outside);
  }

  function close() {
    panel.hidden = true;
    button.setAttribute('aria-expanded', 'false');
    document.removeEventListener('pointerdown', outside);
    if (box.contains(document.activeElement)) button.focus();
  }

  function outside(event) {
    if (!box.isConnected) document.removeEventListener('pointerdown', outside);
    else if (!box.contains(event.target)) close();
  }

  return box;
}

function content(commands) {
  const code = h('pre.code', { tabindex: '0', 'aria-label': 'Command' });
  const copy = h('button.button.primary', { type: 'button', on: { click: () => copyText(code.textContent, copy) } }, 'Copy');
  const choices = FORMS.map((form) => h('button.choice', { type: 'button', on: { click: () => choose(form) } }, form));
  function choose(form) {
    lastForm = form;
    choices.forEach((choice, at) => choice.setAttribute('aria-pressed', String(FORMS[at] === form)));
    const command = form === 'Link' ? location.href : commands[form];
    const isMissing = typeof command !== 'string';
    setText(code, isMissing ? (command?.none ?? 'There is no such call.') : command);
    code.classList.toggle('missing', isMissing);
    copy.disabled = isMissing;
  }
  choose(lastForm);
  return [h('div.choices', null, choices), code, h('div.row.end', null, copy)];
}

async function copyText(text, button) {
  const isCopied = await toClipboard(text);
  setText(button, isCopied ? 'Copied' : 'Select and copy');
  announce(isCopied ? 'Copied.' : 'The browser does not allow copying: select the text.');
  setTimeout(() => setText(button, 'Copy'), 1600);
}

/** The clipboard exists on HTTPS and localhost alone. */
async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyFromField(text);
  }
}

function copyFromField(text) {
  const field = h('textarea.off-screen', { value: text, 'aria-hidden': 'true' });
  document.body.append(field);
  field.select();
  const isCopied = document.execCommand('copy');
  field.remove();
  return isCopied;
}
