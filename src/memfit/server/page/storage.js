// What this browser remembers under a name: for good, or for this tab. Where that is denied, it is forgotten.

export const forGood = remembering(() => localStorage);
export const forThisTab = remembering(() => sessionStorage);

function remembering(area) {
  return {
    read(name) {
      try {
        return area().getItem(name);
      } catch {
        return null;
      }
    },
    write(name, value) {
      try {
        area().setItem(name, value);
      } catch {
        // It holds as long as the page is open.
      }
    },
  };
}
