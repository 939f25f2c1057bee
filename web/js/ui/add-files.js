/** The one queue of uploads, and the ways by which files come into it. */

import { api } from '../api.js';
import { Uploads } from '../uploads.js';
import { chosenFiles } from '../lib/files.js';
import { h } from '../lib/dom.js';
import { count } from '../lib/format.js';
import { go } from '../lib/router.js';
import { announce } from './announce.js';
import { button } from './cells.js';

export const uploads = new Uploads();

/** The demo's files, which the server has in its binary. */
export const DEMO = ['simple.csv', 'second.csv', 'plays.csv', 'survey.csv'];

export function addFiles({ files, left }) {
  uploads.add(files);
  const others = left > 0 ? ` ${count(left, 'other file')} in the folder ${left === 1 ? 'was' : 'were'} left out: they do not end in .csv, .tsv or .txt.` : '';
  uploads.note = others.trim();
  uploads.dispatchEvent(new CustomEvent('change', { detail: { item: null, isNewState: true } }));
  announce(files.length === 0 ? `No file was added.${others}` : `${count(files.length, 'file')} added.${others}`);
}

/** Buttons that open the browser's choice of files, or of a folder. */
export function fileButtons({ kind = '' } = {}) {
  const pick = (isFolder) => {
    const field = h('input', { type: 'file', multiple: true });
    field.webkitdirectory = isFolder;
    field.addEventListener('change', () => {
      addFiles(chosenFiles(field.files));
      go('upload');
    });
    field.click();
  };
  return [button('Choose files', () => pick(false), { kind }), button('Choose a folder', () => pick(true))];
}

export function demoButton() {
  return button('Add the demo’s files', async (event) => {
    event.currentTarget.disabled = true;
    try {
      const files = await Promise.all(DEMO.map(async (name) => ({ file: await api.demo(name), name })));
      addFiles({ files, left: 0 });
      go('upload');
    } catch (problem) {
      announce(problem.message);
    }
    event.target.disabled = false;
  }, { 'data-testid': 'demo' });
}
