/** The page: which view is shown, what is dropped on it, and whether the server can be reached. */

import { access } from './api.js';
import { live } from './live.js';
import { droppedFiles } from './lib/files.js';
import { fill, setText } from './lib/dom.js';
import { go, parseHash } from './lib/router.js';
import { announce } from './ui/announce.js';
import { askToken, showIdentity } from './ui/ask-token.js';
import { flipNearest } from './ui/figure.js';
import { addFiles, uploads } from './ui/add-files.js';
import * as overview from './views/overview.js';
import * as upload from './views/upload.js';
import * as table from './views/table.js';
import * as groups from './views/groups.js';
import * as statistics from './views/statistics.js';
import * as jobs from './views/jobs.js';

/** Each has `title` and `show(root, params, signal)`; it may return a function that takes new parameters of the same view. */
const VIEWS = { '': overview, upload, table, groups, statistics, jobs };

const content = document.getElementById('content');
let shown = null;

function route() {
  const { view, params } = parseHash(location.hash);
  const module = Object.hasOwn(VIEWS, view) ? VIEWS[view] : overview;
  if (shown?.module === module && shown.update) {
    shown.update(params);
    return;
  }
  shown?.controller.abort();
  const controller = new AbortController();
  const isFirst = shown === null;
  shown = { module, controller, update: null };
  document.title = `${module.title} – Tally`;
  for (const anchor of document.querySelectorAll('.nav a')) {
    if (VIEWS[anchor.dataset.view] === module) {
      anchor.setAttribute('aria-current', 'page');
      showWithin(anchor.parentElement, anchor);
    } else anchor.removeAttribute('aria-current');
  }
  fill(content);
  shown.update = module.show(content, params, controller.signal) ?? null;
  if (isFirst) return;
  scrollTo(0, 0);
  content.focus({ preventScroll: true });
  announce(module.title);
}

/** On a phone, the navigation scrolls sideways. After `scrollIntoView`, the Tab key would go on from the link. */
function showWithin(list, link) {
  const [outer, inner] = [list, link].map((element) => element.getBoundingClientRect());
  list.scrollLeft += Math.min(0, inner.left - outer.left) || Math.max(0, inner.right - outer.right);
}

function showConnection() {
  const element = document.getElementById('connection');
  const text = { connecting: 'Connecting', on: 'Connected', off: 'Server not reachable, trying again', full: 'No live figures: too many pages are open' }[live.state];
  element.dataset.state = live.stats?.draining && live.state === 'on' ? 'off' : live.state;
  setText(element, live.stats?.draining && live.state === 'on' ? 'The server is stopping' : text);
}

function showUploads() {
  const badge = document.getElementById('uploads-badge');
  const pending = uploads.items.filter((item) => item.isPending).length;
  badge.hidden = pending === 0;
  setText(badge, String(pending));
  badge.setAttribute('aria-label', `${pending} on their way`);
}

/** A drop anywhere adds files; the text of a drag (a link, a selection) is left to the browser. */
function acceptDrops() {
  const hint = document.getElementById('drop-hint');
  const hasFiles = (event) => Array.from(event.dataTransfer?.types ?? []).includes('Files');
  let depth = 0;
  const show = (by) => {
    depth = Math.max(0, depth + by);
    hint.hidden = depth === 0;
  };
  addEventListener('dragenter', (event) => hasFiles(event) && (event.preventDefault(), show(1)));
  addEventListener('dragleave', (event) => hasFiles(event) && show(-1));
  addEventListener('dragover', (event) => hasFiles(event) && event.preventDefault());
  addEventListener('drop', async (event) => {
    if (!hasFiles(event) || event.defaultPrevented) return;
    event.preventDefault();
    depth = 0;
    hint.hidden = true;
    const files = droppedFiles(event.dataTransfer);
    if (parseHash(location.hash).view !== 'upload') go('upload');
    addFiles(await files);
  });
}

function acceptKeys() {
  addEventListener('keydown', (event) => {
    const isTyping = event.target instanceof Element && event.target.closest('input, select, textarea, [contenteditable]');
    if (event.key === 't' && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) flipNearest();
  });
  document.querySelector('.skip').addEventListener('click', (event) => {
    // The hash is the view's link.
    event.preventDefault();
    content.focus();
  });
}

addEventListener('hashchange', route);
addEventListener('beforeunload', (event) => {
  if (uploads.items.some((item) => item.isPending && item.state !== 'asking')) event.preventDefault();
});
uploads.addEventListener('change', showUploads);
live.addEventListener('state', showConnection);
live.addEventListener('stats', showConnection);
live.addEventListener('back', () => uploads.serverIsBack());
access.addEventListener('needed', askToken);
acceptDrops();
acceptKeys();
showConnection();
showIdentity(document.getElementById('identity'));
live.start();
route();
