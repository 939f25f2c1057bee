/** Short messages for screen readers, in one live region. */

import { setText } from '../lib/dom.js';

export function announce(text) {
  const region = document.getElementById('announcements');
  if (region.textContent === text) setText(region, '');
  requestAnimationFrame(() => setText(region, text));
}
