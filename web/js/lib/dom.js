/** Elements without HTML text: everything that comes from data is set as text. */

/**
 * Makes an element.
 * @param {string} tag a tag, with classes: `td.num`
 * @param {object|null} props attributes; `on` has listeners, and null or false leaves an attribute out
 * @param {...(Node|string|number|null|Array)} children
 */
export function h(tag, props, ...children) {
  const [name, ...classes] = tag.split('.');
  const element = document.createElement(name);
  if (classes.length > 0) element.className = classes.join(' ');
  for (const [key, value] of Object.entries(props ?? {})) setProperty(element, key, value);
  append(element, children);
  return element;
}

function setProperty(element, key, value) {
  if (value === null || value === undefined || value === false) return;
  if (key === 'on') {
    for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
  } else if (key === 'class') {
    element.classList.add(...value.split(' ').filter(Boolean));
  } else if (key in DIRECT) {
    element[key] = value;
  } else {
    element.setAttribute(key, value === true ? '' : value);
  }
}

const DIRECT = { value: 1, checked: 1, disabled: 1, hidden: 1, selected: 1, htmlFor: 1, textContent: 1, multiple: 1, open: 1 };

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}

/** Replaces all children. */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

const FOCUSABLE = 'a[href], button, input, select, textarea';

/** Draws the content of an element anew, and puts the focus on what is now at its place. */
export function keepFocus(element, draw) {
  const at = Array.from(element.querySelectorAll(FOCUSABLE)).indexOf(document.activeElement);
  draw();
  if (at >= 0) Array.from(element.querySelectorAll(FOCUSABLE))[at]?.focus({ preventScroll: true });
}

/** Sets a text only if it differs, so that a screen reader and a selection are left alone. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const SVG = 'http://www.w3.org/2000/svg';

/** An icon of 16 px, drawn in the colour of the text. */
export function icon(path) {
  const svg = document.createElementNS(SVG, 'svg');
  for (const [key, value] of Object.entries({ viewBox: '0 0 16 16', class: 'icon', 'aria-hidden': 'true', focusable: 'false' })) {
    svg.setAttribute(key, value);
  }
  const shape = document.createElementNS(SVG, 'path');
  shape.setAttribute('d', path);
  svg.append(shape);
  return svg;
}

export const ICONS = {
  copy: 'M5.5 5.5h8v8h-8zM10.5 2.5h-8v8',
  down: 'M8 2v8.5M4.5 7 8 10.5 11.5 7M2.5 13.5h11',
  close: 'M4 4l8 8M12 4l-8 8',
  pause: 'M5.5 3.5v9M10.5 3.5v9',
  play: 'M5 3l8 5-8 5z',
  table: 'M2.5 3.5h11v9h-11zM2.5 6.5h11M6.5 6.5v6',
  chart: 'M2.5 2.5v11h11M5 10l3-3 2 1.5L13 5',
  plus: 'M8 3v10M3 8h10',
  retry: 'M13 8a5 5 0 1 1-1.5-3.6M12.5 2v3h-3',
  bin: 'M3 4.5h10M6 4.5v-2h4v2M4.5 4.5l.5 9h6l.5-9',
};
