/** Links within the page: `#/table?column=x`. The hash holds a view's whole state, so that a link reopens it. */

/**
 * @param {string} hash
 * @returns {{view: string, params: URLSearchParams}} the view of `#/` is the empty string
 */
export function parseHash(hash) {
  const text = hash.replace(/^#?\/?/, '');
  const question = text.indexOf('?');
  const view = question < 0 ? text : text.slice(0, question);
  return { view, params: new URLSearchParams(question < 0 ? '' : text.slice(question + 1)) };
}

/**
 * The link to a view.
 * @param {Record<string, string|number|string[]|null|undefined>} params what is null or empty is left out
 */
export function link(view, params = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(params)) {
    const isEmpty = value === null || value === undefined || (value === '' && key !== 'column');
    for (const item of isEmpty ? [] : [value].flat()) query.append(key, item);
  }
  const text = query.toString();
  return `#/${view}${text ? `?${text}` : ''}`;
}

export function go(view, params) {
  location.hash = link(view, params);
}

/** Changes the link of the view that is shown, without showing it again. */
export function stay(view, params) {
  history.replaceState(null, '', link(view, params));
}
