/** Files from a drop or a choice, with what is in dropped folders. */

/** In a folder only these are taken; a file that is dropped itself is always taken. */
const IN_FOLDERS = /\.(csv|tsv|tab|txt|csv\.gz|csv\.zst|tsv\.gz|tsv\.zst)$/i;
const FILES_MAX = 20000;

/**
 * @param {DataTransfer} transfer of a drop; entries have to be taken before the event ends
 * @returns {Promise<{files: {file: File, name: string}[], left: number}>} `left`: other files in folders
 */
export async function droppedFiles(transfer) {
  const entries = Array.from(transfer.items, (item) => (item.kind === 'file' ? (item.webkitGetAsEntry?.() ?? item.getAsFile()) : null));
  const found = { files: [], left: 0 };
  for (const entry of entries) {
    if (entry instanceof File) found.files.push({ file: entry, name: entry.name });
    else if (entry) await collect(entry, found, false);
  }
  return found;
}

async function collect(entry, found, isInFolder) {
  if (found.files.length >= FILES_MAX) return;
  if (entry.isFile) {
    if (isInFolder && !IN_FOLDERS.test(entry.name)) {
      found.left += 1;
      return;
    }
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.files.push({ file, name: entry.fullPath.replace(/^\//, '') || file.name });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    // A reader gives at most 100 entries at a time.
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (batch.length === 0) return;
    batch.sort((a, b) => (a.name < b.name ? -1 : 1));
    for (const child of batch) await collect(child, found, true);
  }
}

/** The files of a file field; those of a chosen folder are filtered like a dropped one. */
export function chosenFiles(list) {
  const all = Array.from(list, (file) => ({ file, name: file.webkitRelativePath || file.name }));
  const files = all.filter(({ file }) => !file.webkitRelativePath || IN_FOLDERS.test(file.name)).slice(0, FILES_MAX);
  return { files, left: all.length - files.length };
}
